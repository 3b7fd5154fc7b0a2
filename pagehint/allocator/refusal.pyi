WHY: dict[int, str]
