"""Files as a person has them, of kinds that are not in the project."""

DATED = """\
store,day,visitors_in,visitors_out,sales
A01,2024-01-05,120,118,1520.50
A02,2024-01-05,80,80,990.00
A02,2024-01-05,80,80,990.00
A03,2024-01-05,many,94,1200.25
"""
# Decimal commas, quotes, codes with leading zeros, missing values, days before months.
MESSY = """\
"Article code";"Name, full";Valid from;Price (net);E-Mail;Count
00123;"Chair ""Oslo"", red";13/01/2024;12,50;a@b.example;5,0
00124;Table;14/01/2024;1200,00;;
00125;"Lamp; tall";14/01/2024 ;NA;;7,0
"""
