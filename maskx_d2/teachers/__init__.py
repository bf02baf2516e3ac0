"""Teachers: models that give a mask for a box and know no class."""
