"""The tests, a folder for each part of the library; ``support`` holds what several of them share."""
