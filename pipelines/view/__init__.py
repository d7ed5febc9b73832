"""One offline page of what a prediction found."""
