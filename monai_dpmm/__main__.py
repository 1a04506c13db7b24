"""`python -m monai_dpmm`."""

from monai_dpmm.app.cli import main

if __name__ == "__main__":
    main()
