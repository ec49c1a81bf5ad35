"""`python -m dgbench`."""

from dgbench.cli import main

if __name__ == "__main__":
    main()
