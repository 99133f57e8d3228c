"""The one door: objects and files in, slots out. Above it nobody touches slots by hand, below it nobody sees AnnData."""
