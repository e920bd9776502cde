"""The paper's tables, and a study of our own, as runs that can be done again.

paper.py             the paper's numbers
tables.py, study.py, tuning.py
                     what is run, as tables of slots
cells.py             slots x preset x seeds -> cells, each one run
cost.py              how long a cell will take, before it starts
results.py           the small result file of a cell, which is committed
runner.py            runs cells, one after the other, over many days
document.py          docs/reproduction.md, from result files alone
study_document.py    docs/study.md, from a text with placeholders and result files
figures.py           its figures
deviations.py        where our runs differ from the paper's
"""
