"""Files that are copied into exports as they are; they know nothing of luthier."""
