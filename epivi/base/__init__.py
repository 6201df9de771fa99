"""What every part rests on: errors, files, time limits, the version of the code."""
