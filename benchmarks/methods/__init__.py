"""What each method of ``fastssl train`` reaches with its defaults, and in which time.

runs.py       one run as a process of its own, and its result file
table.py      the scores in the table of docs/methods.md
picture.py    the kNN accuracy of all methods of images in one picture
"""
