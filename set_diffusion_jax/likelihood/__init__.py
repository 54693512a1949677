"""From streams to nats: the forward pass that training and evaluation share."""
