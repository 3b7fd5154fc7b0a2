# stub
class Arena: pass
