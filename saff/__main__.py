"""``python -m saff`` is the command ``saff``."""

from saff.cli import main

if __name__ == "__main__":
    main()
