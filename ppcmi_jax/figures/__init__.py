"""The pictures of a report: functions of arrays that write one PNG each.

  module           shows
  ---------------  ------------------------------------------------------
  segmentations    image, truth, prediction, errors of cases
  methods          the same of several methods
  reconstructions  what autoencoders keep of images and masks
  latents          latents before and after the keyed transform
  matrices         a score of every pair of clients
  scores           a score's distribution by structure and client
  curves           training and validation losses
  attacks          what attackers draw of a case, by protection
  roc              how well membership attacks tell members

Drawn with `sheets` (a page in mm), `panels` (one picture) and `case_panels`.
"""
