"""How flows run: as Prefect's flows, their tasks in threads or on a cluster, in this process."""
