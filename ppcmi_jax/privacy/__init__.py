"""The attacks of `attacks` run on a trained run, against four protections.

  module    what
  --------  ------------------------------------------------------------------
  campaign  the list of attacks, and the evaluation `privacy` that runs them
  setting   who attacks whom with what: the run's data, dealt
  visits    several images of each subject, to be linked
  pictures  attacks that end in an image
  traces    attacks that end in something else
  notebook  what was found so far
  cells     figures with intervals, and what they prove
  members   the evaluation `membership`, which trains networks of its own

A figure against `sealed` counts as evidence only where the same attack breaks
`klt` in the same run: an attack that opens nothing shows nothing.
"""
