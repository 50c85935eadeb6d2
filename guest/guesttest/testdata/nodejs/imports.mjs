import 'surely_not_there'; export const handler = () => 1;
