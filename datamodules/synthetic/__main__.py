"""`python -m datamodules.synthetic --root DIR` writes the built-in data; `--help` lists how much of it."""

from datamodules.synthetic.writing import main

if __name__ == "__main__":
    main()
