"""The node agent: reads a node's GPUs and reports them to the service, without any of the service's packages."""
