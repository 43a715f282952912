"""Two prompts as people write them, and what they mean, worked out by the rules. Not to be made anew from a result."""

from __future__ import annotations

POSITIVE = (
    "//quality, (masterpiece:1.3), (detailed), ((,best quality,)),//,cute,1girl,//,brown cat ears,animal ear fluff,"
    "(light_brown hair:1.3),(red hair: 1.1),(red inner hair: 1.4), (straight bangs: 1.4),(,long_hair,single braid :1.4)"
    ",(Ahoge),(detailed eyes,blue_eyes:1.4),medium chest,//, (yellow hairpin,crescent-shaped hairpin:1.4),off_shoulders"
    ",large red ribbon,(idol costume:1.4),thigh strap,frilled skirt,gloves,//,blush,smiling,upper_teeth,looking_down,//"
    ",hand_up,(holding microphone:1.3),(standing on stage),//,indoors,crowd of audience,Glow stick,scenery,colorful "
    "light particles,(colorful lights:1.3),(laser light:1.4),glow_in_the_dark,cowboy_shot,dynamic angle"
)

NEGATIVE = (
    "NSFW,text,(worst quality:1.331), (low quality:1.331), (normal quality:1.331), large head, extra digits, bad eye, "
    "extra fingers, fewer fingers, strange fingers, ((bad hands)), Strange eyes, Many hands, (Many arms), "
    "EasyNegativeV2, ng_deepnegative_v1_75t, pregnancy, badhandv4, six fingers, fused fingers, unclear eyes,"
    "poorly drawn,cloned face,bad face,"
)

POSITIVE_SEGMENTS = [
    ["//quality, ", 1.0],
    ["masterpiece", 1.3],
    [", ", 1.0],
    ["detailed", 1.1],
    [", ", 1.0],
    [",best quality,", 1.2100000000000002],
    [",//,cute,1girl,//,brown cat ears,animal ear fluff,", 1.0],
    ["light_brown hair", 1.3],
    [",", 1.0],
    ["red hair", 1.1],
    [",", 1.0],
    ["red inner hair", 1.4],
    [", ", 1.0],
    ["straight bangs", 1.4],
    [",", 1.0],
    [",long_hair,single braid ", 1.4],
    [",", 1.0],
    ["Ahoge", 1.1],
    [",", 1.0],
    ["detailed eyes,blue_eyes", 1.4],
    [",medium chest,//, ", 1.0],
    ["yellow hairpin,crescent-shaped hairpin", 1.4],
    [",off_shoulders,large red ribbon,", 1.0],
    ["idol costume", 1.4],
    [",thigh strap,frilled skirt,gloves,//,blush,smiling,upper_teeth,looking_down,//,hand_up,", 1.0],
    ["holding microphone", 1.3],
    [",", 1.0],
    ["standing on stage", 1.1],
    [",//,indoors,crowd of audience,Glow stick,scenery,colorful light particles,", 1.0],
    ["colorful lights", 1.3],
    [",", 1.0],
    ["laser light", 1.4],
    [",glow_in_the_dark,cowboy_shot,dynamic angle", 1.0],
]

NEGATIVE_SEGMENTS = [
    ["NSFW,text,", 1.0],
    ["worst quality", 1.331],
    [", ", 1.0],
    ["low quality", 1.331],
    [", ", 1.0],
    ["normal quality", 1.331],
    [", large head, extra digits, bad eye, extra fingers, fewer fingers, strange fingers, ", 1.0],
    ["bad hands", 1.2100000000000002],
    [", Strange eyes, Many hands, ", 1.0],
    ["Many arms", 1.1],
    [
        ", EasyNegativeV2, ng_deepnegative_v1_75t, pregnancy, badhandv4, six fingers, fused fingers, unclear eyes,"
        "poorly drawn,cloned face,bad face,",
        1.0,
    ],
]
