"""streamtrain guide and completion: the manual and the shell's completion, printed."""
