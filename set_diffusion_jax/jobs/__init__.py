"""Jobs of one or many processes: meeting, agreeing, ending, and what is noticed."""
