"""`python -m datamodules.synthetic --root DIR` writes the built-in data."""

from datamodules.synthetic.writing import main

if __name__ == "__main__":
    main()
