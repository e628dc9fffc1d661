"""The x86-64 instructions an integer-only program may hold, named as iced-x86 names them.

What is in no list here is refused: a new instruction is read about first, then added. Moves,
logic, blends and shuffles that carry "ps" or "pd" in their name copy bits and never round them, so
they are integer work; what adds, compares or converts floats is not.
"""

import re

from intformer.backends import allow_list
from intformer.backends.allow_list import words


def with_vex(text: str) -> frozenset[str]:
    """Names that exist in an SSE form and in an AVX form with a v in front."""
    return words(text) | {f"v{name}" for name in words(text)}


GENERAL = words("""
    adc adcx add adox and andn bextr blsi blsmsk blsr bsf bsr bswap bt btc btr bts bzhi call cbw
    cdq cdqe clc cld cmc cmp cmpxchg cmpxchg16b cmpxchg8b cpuid cqo crc32 cwd cwde dec div
    endbr64 hlt idiv imul inc int3 jmp lea leave lfence loop lzcnt mfence mov movbe movsx
    movsxd movzx mul mulx neg nop not or pause pdep pext pop popcnt prefetchnta prefetcht0
    prefetcht1 prefetcht2 prefetchw push rcl rcr rdpid rdtsc rdtscp ret rol ror rorx sal sar sarx
    sbb sfence shl shld shlx shr shrd shrx stc std sub syscall test tzcnt ud2 xadd xchg xgetbv xor
    cmova cmovae cmovb cmovbe cmove cmovg cmovge cmovl cmovle cmovne cmovno cmovnp cmovns cmovo
    cmovp cmovs
    ja jae jb jbe je jg jge jl jle jne jno jnp jns jo jp jrcxz js
    seta setae setb setbe sete setg setge setl setle setne setno setnp setns seto setp sets
    lodsb lodsd lodsq lodsw movsb movsq movsw scasb stosb stosd stosq stosw
""")

# movsd is both the string move and the SSE move: a move either way
MOVES_AND_LOGIC = with_vex("""
    movapd movaps movd movddup movdqa movdqu movhlps movhpd movhps movlhps movlpd movlps movmskpd
    movmskps movntdq movntdqa movntpd movntps movq movsd movshdup movsldup movss movupd movups
    lddqu andnpd andnps andpd andps orpd orps xorpd xorps blendpd blendps blendvpd blendvps
    extractps insertps shufpd shufps unpckhpd unpckhps unpcklpd unpcklps
""") | words("""
    vmovdqa32 vmovdqa64 vmovdqu8 vmovdqu16 vmovdqu32 vmovdqu64 vmovw vmaskmovpd vmaskmovps
    valignd valignq vblendmpd vblendmps vbroadcastf128 vbroadcastf32x2 vbroadcastf32x4
    vbroadcastf32x8 vbroadcastf64x2 vbroadcastf64x4 vbroadcasti128 vbroadcasti32x2
    vbroadcasti32x4 vbroadcasti32x8 vbroadcasti64x2 vbroadcasti64x4 vbroadcastsd vbroadcastss
    vcompresspd vcompressps vexpandpd vexpandps vextractf128 vextractf32x4 vextractf32x8
    vextractf64x2 vextractf64x4 vextracti128 vextracti32x4 vextracti32x8 vextracti64x2
    vextracti64x4 vinsertf128 vinsertf32x4 vinsertf32x8 vinsertf64x2 vinsertf64x4 vinserti128
    vinserti32x4 vinserti32x8 vinserti64x2 vinserti64x4 vgatherdpd vgatherdps vgatherqpd
    vgatherqps vscatterdpd vscatterdps vscatterqpd vscatterqps vperm2f128 vperm2i128 vpermi2pd
    vpermi2ps vpermilpd vpermilps vpermpd vpermps vpermt2pd vpermt2ps vshuff32x4 vshuff64x2
    vshufi32x4 vshufi64x2 vzeroall vzeroupper
""")

INTEGER_VECTORS = with_vex("""
    mpsadbw pabsb pabsd pabsw packssdw packsswb packusdw packuswb paddb paddd paddq paddsb paddsw
    paddusb paddusw paddw palignr pand pandn pavgb pavgw pblendvb pblendw pcmpeqb pcmpeqd pcmpeqq
    pcmpeqw pcmpgtb pcmpgtd pcmpgtq pcmpgtw pextrb pextrd pextrq pextrw phaddd phaddsw phaddw
    phminposuw phsubd phsubsw phsubw pinsrb pinsrd pinsrq pinsrw pmaddubsw pmaddwd pmaxsb pmaxsd
    pmaxsw pmaxub pmaxud pmaxuw pminsb pminsd pminsw pminub pminud pminuw pmovmskb pmovsxbd
    pmovsxbq pmovsxbw pmovsxdq pmovsxwd pmovsxwq pmovzxbd pmovzxbq pmovzxbw pmovzxdq pmovzxwd
    pclmulqdq pmovzxwq pmuldq pmulhrsw pmulhuw pmulhw pmulld pmullw pmuludq por psadbw pshufb pshufd
    pshufhw pshuflw psignb psignd psignw pslld pslldq psllq psllw psrad psraw psrld psrldq psrlq
    psrlw
    psubb psubd psubq psubsb psubsw psubusb psubusw psubw ptest punpckhbw punpckhdq punpckhqdq
    punpckhwd punpcklbw punpckldq punpcklqdq punpcklwd pxor
""") | words("""
    vdbpsadbw vpabsq vpandd vpandnd vpandnq vpandq vpblendd vpblendmb vpblendmd vpblendmq
    vpblendmw vpbroadcastb vpbroadcastd vpbroadcastmb2q vpbroadcastmw2d vpbroadcastq vpbroadcastw
    vpcmpb vpcmpd vpcmpq vpcmpub vpcmpud vpcmpuq vpcmpuw vpcmpw vpcompressb vpcompressd
    vpcompressq vpcompressw vpconflictd vpconflictq vpermb vpermd vpermi2b vpermi2d vpermi2q
    vpermi2w vpermq vpermt2b vpermt2d vpermt2q vpermt2w vpermw vpexpandb vpexpandd vpexpandq
    vpexpandw vpgatherdd vpgatherdq vpgatherqd vpgatherqq vplzcntd vplzcntq vpmadd52huq
    vpmadd52luq vpmaskmovd vpmaskmovq vpmaxsq vpmaxuq vpminsq vpminuq vpmovb2m vpmovd2m vpmovdb
    vpmovdw vpmovm2b vpmovm2d vpmovm2q vpmovm2w vpmovq2m vpmovqb vpmovqd vpmovqw vpmovsdb
    vpmovsdw vpmovsqb vpmovsqd vpmovsqw vpmovswb vpmovusdb vpmovusdw vpmovusqb vpmovusqd
    vpmovusqw vpmovuswb vpmovw2m vpmovwb vpmullq vpmultishiftqb vpopcntb vpopcntd vpopcntq
    vpopcntw vpord vporq vprold vprolq vprolvd vprolvq vprord vprorq vprorvd vprorvq vpscatterdd
    vpscatterdq vpscatterqd vpscatterqq vpshldd vpshldq vpshldvd vpshldvq vpshldvw vpshldw
    vpshrdd vpshrdq vpshrdvd vpshrdvq vpshrdvw vpshrdw vpshufbitqmb vpsllvd vpsllvq vpsllvw
    vpsraq vpsravd vpsravq vpsravw vpsrlvd vpsrlvq vpsrlvw vpternlogd vpternlogq vptestmb
    vptestmd vptestmq vptestmw vptestnmb vptestnmd vptestnmq vptestnmw vpxord vpxorq
""")

DOT_PRODUCTS = words("""
    vpdpbssd vpdpbssds vpdpbsud vpdpbsuds vpdpbusd vpdpbusds vpdpbuud vpdpbuuds vpdpwssd
    vpdpwssds
    ldtilecfg sttilecfg tdpbssd tdpbsud tdpbusd tdpbuud tileloadd tileloaddt1 tilerelease
    tilestored tilezero
""")

MASKS = words("""
    kaddb kaddd kaddq kaddw kandb kandd kandnb kandnd kandnq kandnw kandq kandw kmovb kmovd kmovq
    kmovw knotb knotd knotq knotw korb kord korq kortestb kortestd kortestq kortestw korw kshiftlb
    kshiftld kshiftlq kshiftlw kshiftrb kshiftrd kshiftrq kshiftrw ktestb ktestd ktestq ktestw
    kunpckbw kunpckdq kunpckwd kxnorb kxnord kxnorq kxnorw kxorb kxord kxorq kxorw
""")

ALLOWED = GENERAL | MOVES_AND_LOGIC | INTEGER_VECTORS | DOT_PRODUCTS | MASKS

# Why a name is refused; the first match gives the reason. A name that matches none is unknown.
DENIED = {
    "x87 float": re.compile(r"f(?!xsave|xrstor)\w+"),
    "float control": re.compile(r"v?(ld|st)mxcsr"),
    "float conversion": re.compile(r"v?cvt\w+|vbcstne\w+|p[fi]2[fi][dw]"),
    "float comparison": re.compile(
        r"v?cmp[ps][sdh]|v?u?comis[sdh]|vfpclass[ps][sdh]|vtestp[sd]|pfcmp\w+"
    ),
    "float arithmetic": re.compile(
        r"v?(add|addsub|div|dp|hadd|hsub|max|min|mul|rcp|round|rsqrt|sqrt|sub)[ps][sdh]"
        r"|v(exp2|getexp|getmant|fixupimm|range|rcp14|rcp28|reduce|rndscale|rsqrt14|rsqrt28|scalef)"
        r"[ps][sdh]"
        r"|vfn?m(add|sub)\w+|vfc?(madd|mul)c[ps]h|v4fn?madd\w+|vdpbf16ps"
        r"|tdpbf16ps|tdpfp16ps|tcmm\w+|pf\w+"
    ),
}


def fault(mnemonic: str) -> str | None:
    """Return why an integer-only program may not hold this instruction, None where it may."""
    return allow_list.fault(mnemonic, ALLOWED, DENIED)
