"""Many devices: meshes, pieces of a sequence, processes."""
