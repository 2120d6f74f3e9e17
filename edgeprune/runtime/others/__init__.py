"""Other people's runtimes: does a file load there, and does it compute the same?"""
