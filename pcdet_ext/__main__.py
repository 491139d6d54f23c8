"""`python -m pcdet_ext` is the command `pcdet`."""

from pcdet_ext.cli.command import console

if __name__ == "__main__":
    console()
