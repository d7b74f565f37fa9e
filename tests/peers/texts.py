"""What llama.cpp and Lamoid are both given to read: prompts of many kinds, and prose in two languages."""

from pydoc_data import topics

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "The three laws of thermodynamics are",
    "My favourite recipe for bread begins with",
    "Thủ đô của Việt Nam là",
    "Trăm năm trong cõi người ta,",
    "Tie\u0302\u0301ng Vie\u0323\u0302t la\u0300",  # NFD
    "中国的首都是",
    "今天天气很好，我们",
    "대한민국의 수도는",
    "안녕하세요, 저는",
    "العربية لغة",
    "def fibonacci(n):\n",
    "#include <stdio.h>\n\nint main(void) {\n",
    "SELECT name, count(*) FROM",
    "1 2 3 4 5 6 7",
    "12345 + 67890 =",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀😀😀",
    "  \n\n\t  x",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",  # spelled out, so text
]

ENGLISH = topics.topics["specialnames"][:10_000]

VIETNAMESE = """\
Sáng sớm, khi sương còn phủ trên mặt hồ, bà Lan đã dậy nhóm bếp. Bà nấu một nồi cháo trắng, rang ít lạc, rồi ngồi bên
hiên nhà đợi đứa cháu ngoại thức giấc. Từ ngày con gái lên thành phố làm việc, trong nhà chỉ còn hai bà cháu. Ban ngày
bà ra đồng, chiều về lại chăm mấy luống rau sau vườn; còn thằng Minh đi học ở ngôi trường nhỏ cuối làng, cách nhà
chừng hai cây số. Con đường đến trường chạy dọc bờ sông, mùa khô thì bụi bay mù mịt, mùa mưa thì lầy lội đến nỗi bọn
trẻ phải xách dép trên tay mà đi.

Hôm ấy là ngày khai giảng. Minh mặc chiếc áo trắng mẹ gửi về từ tuần trước, áo hơi rộng nhưng nó thích lắm. Nó đứng
trước gương một lúc lâu, rồi quay sang hỏi bà: "Bà ơi, bao giờ thì mẹ về?" Bà cười, vuốt lại cổ áo cho cháu và bảo:
"Khi nào lúa chín vàng, mẹ sẽ về ăn cơm mới với hai bà cháu mình." Minh gật đầu. Nó không hỏi thêm, nhưng từ hôm ấy,
chiều nào nó cũng ra đứng ở đầu bờ ruộng, xem lúa đã chín đến đâu.

Thầy giáo mới của lớp là một người còn trẻ, quê ở miền biển. Thầy kể cho học trò nghe về những con thuyền ra khơi lúc
nửa đêm, về tiếng sóng vỗ vào vách đá, về những người đàn bà ngồi vá lưới trên bãi cát. Bọn trẻ trong làng chưa đứa
nào được thấy biển, nên chúng ngồi im phăng phắc mà nghe. Đến cuối giờ, thầy phát cho mỗi đứa một tờ giấy và bảo chúng
vẽ biển theo cách mà chúng tưởng tượng. Có đứa vẽ biển giống như cái ao làng, có đứa vẽ biển xanh như cánh đồng lúa,
còn Minh thì vẽ một con đường rất dài, hai bên là nước, và ở cuối con đường có một người phụ nữ đang đứng vẫy tay.

Thầy nhìn bức tranh hồi lâu rồi hỏi: "Ai đây, em?" Minh đáp nhỏ: "Thưa thầy, mẹ em." Thầy không nói gì, chỉ đặt tay
lên vai nó. Chiều hôm ấy, thầy đi bộ cùng Minh về nhà, vừa đi vừa hỏi chuyện ruộng vườn. Bà Lan mời thầy ở lại ăn bữa
cơm đạm bạc: một đĩa rau muống luộc, một bát canh cua, mấy con cá kho tiêu. Thầy ăn rất ngon và khen canh cua của bà
còn ngon hơn canh mẹ thầy nấu. Bà cười, bảo rằng ở quê chẳng có gì quý, chỉ có cái tình là không thiếu.

Rồi mùa gặt đến. Cả cánh đồng ngả sang màu vàng óng, gió thổi qua từng đợt như sóng. Sáng ngày mười lăm tháng mười,
khi bà đang phơi thóc ngoài sân thì nghe tiếng xe dừng ngoài ngõ. Minh bỏ cả bát cơm đang ăn dở, chạy ra. Mẹ nó đứng
đó, tay xách một túi quà, mắt đỏ hoe. Nó ôm lấy mẹ, không khóc, chỉ nói: "Mẹ ơi, con biết là hôm nay mẹ về, vì lúa
chín rồi." Buổi tối, cả nhà quây quần bên mâm cơm gạo mới. Hương gạo thơm lan ra tận ngoài sân, và trên trời, trăng
rằm sáng vằng vặc, soi rõ con đường nhỏ chạy dọc bờ sông, con đường mà ngày mai hai mẹ con sẽ cùng đi đến trường.
"""
