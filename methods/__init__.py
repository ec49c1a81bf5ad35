"""One file = one method; the file's name is the method's name. A file `_x.py` is shared and is no method."""
