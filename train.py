"""Trains a method: python train.py --config=CONFIG --workdir=WORKDIR."""

from absl import flags

from ppcmi_jax import collaboration, command

if __name__ == '__main__':
  flags.adopt_module_key_flags(command)
  command.run(collaboration.train, several_processes=True)
