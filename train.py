"""Trains a method: python train.py --config=CONFIG --workdir=WORKDIR."""

from ppcmi_jax import collaboration, command

if __name__ == '__main__':
  command.run(collaboration.train, several_processes=True)
