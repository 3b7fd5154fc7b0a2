"""How long granules pause, and the age at which to report that follows from it.

Begin with `learnt_age.pxd`: the histogram, the decision, and the account that bounds what a wrong one costs. Uses
`sync`.
"""
