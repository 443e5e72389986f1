"""Who steps when, and how the clients' weights stay alike."""

from splitlearn.topologies.topology import Topology, topology_from

__all__ = ["Topology", "topology_from"]
