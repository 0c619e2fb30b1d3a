"""HTTP: who may, the resources of the contract's section 3, and the site that serves them."""
