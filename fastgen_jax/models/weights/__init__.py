"""Reading checkpoints: file formats, tensor layouts and the families that give them meaning."""
