"""Side by side: this course's code beside others', and beside the machine's limits. `python -m bench NAME`"""
