"""Steps on one scan, as MONAI has them."""
