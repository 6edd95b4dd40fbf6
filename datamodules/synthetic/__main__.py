"""`python -m datamodules.synthetic --root DIR` writes the built-in data; `--help` lists how much of it."""

from commands.ending import importing

with importing():
    from commands.synthetic import synthetic

if __name__ == "__main__":
    synthetic()
