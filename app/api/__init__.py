"""HTTP and nothing else: parse, authorise, call one or two functions, answer."""
