"""A headless Chromium, for the tests of pages."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys

CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))), None
)


class Browser:
  """A headless Chromium at the other end of two pipes (DevTools protocol)."""

  # The pipes have to be file descriptors 3 and 4 of the browser.
  START = (
    'import fcntl, os, sys; '
    'ends = [fcntl.fcntl(int(a), fcntl.F_DUPFD, 10) for a in sys.argv[1:3]]; '
    'os.dup2(ends[0], 3); os.dup2(ends[1], 4); '
    'os.execv(sys.argv[3], sys.argv[3:])'
  )

  def __init__(self, folder):
    theirs_in, self.write = os.pipe()
    self.read, theirs_out = os.pipe()
    self.process = subprocess.Popen(
      [
        *(sys.executable, '-S', '-c', self.START),
        *(str(theirs_in), str(theirs_out), CHROMIUM),
        *('--headless=new', '--no-sandbox', '--disable-gpu'),
        *('--disable-dev-shm-usage', '--no-first-run', '--hide-scrollbars'),
        *('--disable-background-networking', '--disable-component-update'),
        *('--disable-extensions', '--disable-sync', '--no-pings'),
        *('--remote-debugging-pipe', f'--user-data-dir={folder}'),
        'about:blank',
      ],
      pass_fds=(theirs_in, theirs_out),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    self.number, self.buffer, self.events, self.session = 0, b'', [], None
    targets = self.send('Target.getTargets')['targetInfos']
    [target] = [t['targetId'] for t in targets if t['type'] == 'page'][:1]
    self.session = self.send(
      'Target.attachToTarget', targetId=target, flatten=True
    )['sessionId']
    for domain in ('Page', 'Network', 'Runtime', 'Log'):
      self.send(f'{domain}.enable')

  def receive(self):
    while b'\0' not in self.buffer:
      assert select.select([self.read], [], [], 60)[0], 'the browser hangs'
      data = os.read(self.read, 1 << 20)
      assert data, 'the browser ended'
      self.buffer += data
    message, _, self.buffer = self.buffer.partition(b'\0')
    return json.loads(message)

  def send(self, method, **params):
    self.number += 1
    call = {'id': self.number, 'method': method, 'params': params}
    if self.session:
      call['sessionId'] = self.session
    os.write(self.write, json.dumps(call).encode() + b'\0')
    while (message := self.receive()).get('id') != self.number:
      self.events.append(message)
    assert 'error' not in message, (method, message)
    return message['result']

  def open(self, path, *, scheme='light', width=1280, height=900):
    self.events.clear()
    self.send(
      'Emulation.setEmulatedMedia',
      features=[{'name': 'prefers-color-scheme', 'value': scheme}],
    )
    self.send(
      'Emulation.setDeviceMetricsOverride',
      **{'width': width, 'height': height, 'deviceScaleFactor': 1},
      mobile=False,
    )
    self.send('Page.navigate', url=path.as_uri())
    while not self.named('Page.loadEventFired'):
      self.events.append(self.receive())

  def named(self, *methods):
    return [
      event['params'] for event in self.events if event.get('method') in methods
    ]

  def ask(self, expression):
    result = self.send(
      'Runtime.evaluate',
      **{'expression': expression, 'returnByValue': True, 'awaitPromise': True},
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def press(self, key, code, text=''):
    for kind in ('keyDown', 'keyUp'):
      self.send(
        'Input.dispatchKeyEvent',
        **{'type': kind, 'key': key, 'windowsVirtualKeyCode': code},
        **({'text': text} if text and kind == 'keyDown' else {}),
      )

  def close(self):
    with contextlib.suppress(AssertionError, OSError):
      self.send('Browser.close')
    os.close(self.write)
    os.close(self.read)
    try:
      self.process.wait(10)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
