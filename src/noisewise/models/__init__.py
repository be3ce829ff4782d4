"""Networks: experts behind one router, shaped networks and how they are cut, cost, loading."""
