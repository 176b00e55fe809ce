"""The tunnel carries: every data-plane descriptor and every octet of encapsulation."""
