"""Programs that make traffic and count what arrives, and the driver that runs them inside a lab.

Each is a process of its own in the namespace it speaks from: `python -m bench.traffic.udp send …`.  They
import nothing but the standard library, so that one starts in a blink, and print one JSON object at the end.

Heads up: iperf3 measures TCP.  UDP is measured by our own sender and receiver: iperf3 cannot pace small
frames more finely than its timer, and per datagram it costs as much as Python does.  No tool here uses
`UDP_SEGMENT`: a burst of datagrams must reach the overlay device frame by frame, as most programs send them.
"""
