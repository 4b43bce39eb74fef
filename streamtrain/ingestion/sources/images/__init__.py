"""Images: folders of classes, tar files, and columns of tables."""
