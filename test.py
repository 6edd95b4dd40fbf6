"""Test a trained classifier on one split; the same as `superfer test`.

    python test.py --ckpt_path RUN --split test

Read next: `commands/test.py`.
"""

from commands.ending import importing

with importing():
    from commands.test import test

if __name__ == "__main__":
    test()
