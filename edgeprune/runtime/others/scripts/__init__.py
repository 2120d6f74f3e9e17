"""What runs within another runtime's Python: plain scripts of numpy and that runtime alone.

None of them imports edgeprune, which needn't be there, and none of them is imported by it.
`harness.py` is the script; each `in_NAME.py` beside it has `load_and_run` and `version`.
"""
