"""The pages of the command: one model (`evaluation`), several models (`comparison`)."""
