//! Names of one legacy hash, found by a search of some seconds.

/// Their major hash, as the directory index uses it.
pub(crate) const MAJOR: u32 = 0x1234_5678 << 1;

/// Names, a space between two.
pub(crate) const NAMES: &str = "\
    ddumaa&l a5enaaS; bk6qaa'^ sfjsaa>7 sbeuaa)< gdjwaaRT eiwzaa?m nl6qba8b 9c7wba@A \
    0ywzbaho 7j43baXx uij4bak@ 7cd5baUD 3vmcca]b njjfcaIp 4o5kca|I p3pqcaIX nzcxca}Y \
    k94zca6? lk70casF fn13caQ< 7haadaP6 o6hgdazY p79kdaJL w4lxdaw^ xq3aeaYq fo0yea>T \
    l497ea2K 912cfa4< ivvlfav0 sxemfa~G 5eipfaMK 3j9pfasv i1k5fasU j1g8fasa 204aga!V \
    1x8hga*4 ngriga02 iwrrga@5 0uitgaW] 9xzugapW u7kxha38 w057haT2 46bdiabJ w75diaBu \
    40ahiaTU gxi5iaV; 43l7ia}r xzzajaWv n03cjatw 6azgjaKH 3i7gjaqt fhdjja4v g5fkjaJD \
    6e5kja*L 70avjap] mzlzja'z gv4zjawl 7hg4jaKn szuekaSp 3dbhkai5 sq7kka@Q 3vuvlaFv \
    5ftemaV; yibpmabj rrjsmagI wv7yma(R yyd1maG0 3zc4ma6L pjtcna`[ uraenaLN wkpfnab8 \
    ofanna4y xv05nayD 3516na9n r9lcoa~6 q54doaWJ ewdmoa!M s5fooaP< d7n1oa'1 rcz3oaba \
    ozr5oay2 p6m7oa5s 75gkpaY; s00wpaq< 2klzpaWi fzc4pa?u ys07pahP pclfqaEg 9er6qatx \
    bvhbra-i kmqgrajF 9u0asaDa yqofsaaZ uvgosaLm 8n81sawy qle2saLp yr05saW_ q789saDT \
    udzctaKr qtlitapP ckymtac8 hmhqta?n 8adrta4T ekgwtawq wg91tav` ueg3taiP 8dd4ta?k \
    hbu9ta;0 b2z9ta&T wwwguaos ig5iuasb a7ysuaL@ gvgxuaxR uzfbva'9 ek3hvaqg 0zbhwa-B \
    tw1jwaL` j4wkwaX8 48lrwaWg 7l3rwa<l xiitwagI 1ukbxauX 54zcxa#; 3fvkxa-Q ff4lxa~[ \
    vtooxagI hl0qxatV 65yrxaCS 63uxxaAe nrf0xagD rgw0xa$p y8r7xaGR 1uejya,7 04opyah@ \
    vnwpya(^ 69ytya54 znsvya^J e4uzyazf z2wkza=g 4zclza1c z610zaIU 5ee8za;j 5apg0a0e \
    q7xn0aON yqcs0avn ihpv0aCa bch10a&V j8c20aOn mv670aXe";
