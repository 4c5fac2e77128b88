"""Reading slices: from image files to square grey pixels."""
