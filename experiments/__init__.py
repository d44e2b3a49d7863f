"""The paper's comparisons on one data set: Table 1, the sweeps around it, caption infilling."""
