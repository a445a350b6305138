"""Tasks: how one step of a flow survives. Each adapts one call of the library to Prefect."""
