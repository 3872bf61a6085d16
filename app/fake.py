import numpy as np, time
from types import SimpleNamespace as NS
class Feat:
    def __init__(s,p): s.picture=p
class FakePair:
    def __init__(s,a,b): s.a,s.b=a,b
    def match(s,points,localiser=None):
        p=np.asarray(points,dtype=np.float32)
        sc=np.array([s.b.picture.size[1]/s.a.picture.size[1], s.b.picture.size[0]/s.a.picture.size[0]])
        return NS(points=p*sc, confidence=np.full(len(p),0.73))
    def heatmap(s,point,size=None):
        H,W=size or s.b.picture.size
        h,w=s.a.picture.size
        cx,cy=point[0]/w*W,point[1]/h*H
        y,x=np.mgrid[:H,:W]
        return np.exp(-((x-cx)**2+(y-cy)**2)/(2*(0.12*max(H,W))**2))
    def swap(s): return FakePair(s.b,s.a)
class FakeMatcher:
    def at(s,**k): return s
    def encode(s,im,category=None): time.sleep(.8); return Feat(im)
    def pair(s,a,b): return FakePair(a,b)
