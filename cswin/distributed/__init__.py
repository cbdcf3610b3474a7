"""One command, many processes: MindSpore's msrun starts one rank per device, and this package stands around it."""
