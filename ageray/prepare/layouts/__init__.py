"""The layouts of data sets, a file each. `catalog` lists them."""
